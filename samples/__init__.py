"""Sample data sets, planned and drawn here: towns and their maps, towns and their heights."""
