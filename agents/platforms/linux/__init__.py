"""Linux: the only code that touches the machine under test."""
