"""The computer: devices, processes, workers, files on its disk, bars, and how scripts stop."""
