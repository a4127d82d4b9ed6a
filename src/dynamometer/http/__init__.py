"""HTTP: listening, serving, relaying, and errors in OpenAI's form."""
