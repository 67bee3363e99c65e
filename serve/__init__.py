"""An HTTP server that speaks the protocols of OpenAI and Anthropic. Needs `pip install 'fastslow[serve]'`."""
