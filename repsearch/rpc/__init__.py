"""Generated RPC stubs."""
