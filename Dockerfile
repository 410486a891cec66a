# The README's two commands in a container. Written for Docker, not run with it so far.
#     docker build -t pix2pix .
#     docker run -v "$PWD/evaluation:/pix2pix/evaluation" -v "$PWD/checkpoints:/pix2pix/checkpoints" pix2pix
#     docker run pix2pix sh -c "pip install -r requirements-dev.txt && pytest"
FROM python:3.12-slim
WORKDIR /pix2pix
COPY requirements*.txt ./
RUN pip install --no-cache-dir -r requirements.txt
COPY . .
CMD ["python", "train.py"]
