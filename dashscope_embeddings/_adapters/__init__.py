"""Parts that the adapters of LangChain and LlamaIndex share. Nothing here imports a framework.

base, sparse            settings as pydantic fields, and the client made from them
hybrid, hybrid_cache    dense and sparse vectors of a pair of adapters from one billed request
vector_cache            a cache in front of the client; langchain_cache stores it in a LangChain byte store
flows                   one implementation for a sync method and its asynchronous version
"""
