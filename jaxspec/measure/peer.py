"""transformers' own generation with our weights: what `bench decode --peer` is compared to.

The model is written as safetensors (`jaxspec export`), and loaded in the dtype that ours
computes in. Prefill is not counted, as in our own loops: a text's time begins with its
first token.
"""

import importlib.util
import os
import pathlib
import tempfile
import time
from typing import Any

import checkpoints_conv


class Transformers:
    """A model as transformers runs it: one prompt at a time, on a GPU if torch has one.

    Attributes:
        tokens, seconds: after the first token of each text, since the last `reset`.
    """

    def __init__(self, folder: pathlib.Path, dtype: str):
        """Exports and loads a model.

        Raises:
            ModuleNotFoundError: if transformers or torch is missing.
            ValueError: if no family that transformers knows has such a model.
        """
        check_installed()
        import torch
        import transformers

        self._torch, self._version = torch, transformers.__version__
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        torch.set_num_threads(os.cpu_count() or 1)
        transformers.utils.logging.disable_progress_bar()
        transformers.utils.logging.set_verbosity_error()
        with tempfile.TemporaryDirectory() as temporary:
            exported = pathlib.Path(temporary) / "model"
            checkpoints_conv.export(folder, exported)
            model = transformers.AutoModelForCausalLM.from_pretrained(
                exported, dtype=getattr(torch, dtype)
            )
        model.generation_config = (
            transformers.GenerationConfig()
        )  # ours has no penalties
        self._model = model.to(self._device).eval()
        self.reset()

    def reset(self) -> None:
        """Begins to count anew."""
        self.tokens, self.seconds = 0, 0.0

    def environment(self) -> dict[str, Any]:
        """What was compared with."""
        return {
            "name": "transformers",
            "version": self._version,
            "torch": self._torch.__version__,
            "device": self._device,
            "threads": self._torch.get_num_threads(),
        }

    def decode(
        self, prompt: list[int], repeats: int, settings: dict[str, Any]
    ) -> list[int]:
        """Continues a prompt, and counts the median of the times.

        Args:
            prompt: token ids.
            repeats: timings.
            settings: `max_new_tokens`, `temperature`, `top_k`, `top_p` and `stops`, as
                `init_state` takes them.

        Returns:
            The prompt and what follows.
        """
        self._generate(prompt, {**settings, "max_new_tokens": 2})  # warms up
        texts = [self._generate(prompt, settings) for _ in range(repeats)]
        written, times = texts[0][0], [seconds for _, seconds in texts]
        if len(written) > len(prompt) + 1:
            self.tokens += len(written) - len(prompt) - 1
            self.seconds += sorted(times)[len(times) // 2]
        return written

    def _generate(self, prompt, settings) -> tuple[list[int], float]:
        """A text, and the seconds that it took after its first token."""
        chosen = {"do_sample": False}
        if temperature := settings["temperature"]:
            chosen = {
                "do_sample": True,
                "temperature": temperature,
                "top_k": settings["top_k"] or 0,
                "top_p": settings["top_p"],
            }
        tokens = self._torch.tensor([prompt], device=self._device)
        clock = _Clock()
        with self._torch.inference_mode():
            out = self._model.generate(
                tokens,
                attention_mask=self._torch.ones_like(tokens),
                max_new_tokens=settings["max_new_tokens"],
                eos_token_id=settings["stops"] or None,
                pad_token_id=0,
                streamer=clock,
                **chosen,
            )
        return out[0].tolist(), clock.seconds()


class _Clock:
    """What transformers shows the prompt and then each token to, when it has come."""

    def __init__(self):
        self._times = []

    def put(self, tokens) -> None:
        self._times.append(time.perf_counter())

    def end(self) -> None:
        pass

    def seconds(self) -> float:
        """From the first token to the last."""
        return self._times[-1] - self._times[1]


def check_installed() -> None:
    """Says what is missing before anything long begins.

    Raises:
        ModuleNotFoundError: if transformers or torch is.
    """
    for name in ("torch", "transformers"):
        if importlib.util.find_spec(name) is None:
            raise ModuleNotFoundError(
                f"--peer transformers needs {name}: pip install 'jaxspec[hf]'."
            )
