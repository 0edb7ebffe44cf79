"""What only a GPU can show, tiny; skipped where there is none (GPU_TESTS_ON=cpu rehearses it)."""
