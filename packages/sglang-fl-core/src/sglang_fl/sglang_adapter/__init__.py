"""All that knows SGLang: an adapter for each layer class, and what installs them."""
