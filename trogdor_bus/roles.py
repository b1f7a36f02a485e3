"""Which nodes a spec means when it names roles: leader(orders, 0), controller, one-of(rack(r1)). Pure."""
