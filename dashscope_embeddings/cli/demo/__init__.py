"""The command `demo`: searches real text with an index in LangChain and one in LlamaIndex."""
