"""IRModule passes: Relax, Relay's successor, since TVM removed Relay."""
