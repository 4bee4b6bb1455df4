"""Scripts that turn raw data into RecBole's atomic files; each is also a module with a function to call."""
