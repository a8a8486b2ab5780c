"""What transformers makes of the tiny backbones of tiny_families.py; needs the extra `parity`."""

import numpy as np
import tiny_families as tiny
import torch

from mpt_jax.model.formats import names
from mpt_jax.model.formats.arrays import flatten


def encoder_decoder(model, config, prompted: bool, prompt_scale: float = 1.0, **search) -> dict[str, np.ndarray]:
    """As tiny_families.ours, of a model of transformers with the same weights. ``search``: more of `generate`'s settings.

    prompt_scale: of prompts where the model scales rows of its embedding before they are `inputs_embeds`.
    """
    batch, start = tiny.rows(config), config.decoder_start_id
    embedded_BSD, mask_BS = _embedded(model, config, prompted, prompt_scale)
    targets_BT = torch.tensor(batch.targets_BT, dtype=torch.long)
    shifted_BT = torch.cat([torch.full((3, 1), start), targets_BT[:, :-1]], dim=1)
    with torch.no_grad():
        out = model(inputs_embeds=embedded_BSD, attention_mask=mask_BS, decoder_input_ids=shifted_BT)
        made_BT = model.generate(
            inputs_embeds=embedded_BSD, attention_mask=mask_BS, decoder_start_token_id=start, max_new_tokens=tiny.STEPS,
            pad_token_id=0, **{"eos_token_id": list(tiny.ENDS), "do_sample": False, "num_beams": 1, **search},
        )[:, 1:]  # fmt: skip
    return {"logits": tiny.real_only(out.logits.numpy()), "tokens": filled(made_BT)}


def _embedded(model, config, prompted: bool, prompt_scale: float):
    batch = tiny.rows(config)
    embedded_BSD = model.get_input_embeddings()(torch.tensor(batch.inputs_BL, dtype=torch.long)).detach()
    mask_BS = torch.arange(9)[None] < torch.tensor(batch.input_length_B)[:, None]
    if prompted:
        embedded_BSD = torch.cat([prompt_scale * torch.tensor(tiny.prompts(config)), embedded_BSD], dim=1)
        mask_BS = torch.cat([torch.ones(3, tiny.P, dtype=torch.bool), mask_BS], dim=1)
    return embedded_BSD, mask_BS.long()


def decoder_only(model, config, **search) -> np.ndarray:
    """Tokens (B, STEPS) that `generate` continues the inputs with, which stand at the right for it."""
    batch = tiny.rows(config)
    lengths_B1 = torch.tensor(batch.input_length_B)[:, None]
    rolled = [np.roll(row_L, 9 - length) for row_L, length in zip(batch.inputs_BL, batch.input_length_B, strict=True)]
    mask_BL = (torch.arange(9)[None] >= 9 - lengths_B1).long()
    with torch.no_grad():
        made_BT = model.generate(
            input_ids=torch.tensor(np.stack(rolled), dtype=torch.long), attention_mask=mask_BL, max_new_tokens=tiny.STEPS, pad_token_id=0,
            **{"eos_token_id": list(tiny.ENDS), "do_sample": False, "num_beams": 1, **search},
        )  # fmt: skip
    return filled(made_BT[:, 9:])


def state_dict(config) -> dict[str, torch.Tensor]:
    """The tiny weights by Hugging Face's names."""
    flat = flatten(tiny.weights(config))
    turned = {entry.huggingface: flat[entry.ours].T if entry.turned else flat[entry.ours] for entry in names.entries(config)}
    return {name: torch.tensor(np.ascontiguousarray(array)) for name, array in turned.items()}


def filled(tokens_BT) -> np.ndarray:
    """Tokens (B, STEPS), with zeros behind those that were made."""
    found_BT = np.zeros((len(tokens_BT), tiny.STEPS), np.int32)
    found_BT[:, : tokens_BT.shape[1]] = tokens_BT
    return found_BT
