"""Where ranks come from, and the process that starts them."""
