"""Small records, images and sentences, generated here and so free of licenses."""
