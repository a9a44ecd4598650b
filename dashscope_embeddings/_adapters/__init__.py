"""What the adapters of LangChain and LlamaIndex share. Nothing here imports a framework."""
