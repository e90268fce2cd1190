"""Labels for images and stored rows."""
