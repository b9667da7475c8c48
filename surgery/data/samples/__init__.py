"""Small records, images and sentences drawn here, so that they are free of licenses."""
