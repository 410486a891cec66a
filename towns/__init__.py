"""The sample data set: made-up towns, planned and drawn as aerial photo and street map."""
