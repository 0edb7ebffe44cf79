"""Why a session ends: asked to, out of time, or a rank lost."""
