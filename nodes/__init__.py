"""ComfyUI nodes: each converts its inputs, calls the engine and wraps what comes back."""
