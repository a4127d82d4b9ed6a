"""HTTP: sockets and servers, the relay of a request, and errors in OpenAI's form."""
