"""Where instances are found: `interface` is the promise, each other module a variant."""
