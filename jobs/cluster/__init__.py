"""How nodes are asked for, and where a rank finds itself."""
