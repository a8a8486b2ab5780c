"""What transformers makes of the tiny backbones of tiny_families.py; needs the extra `parity`."""

import numpy as np
import tiny_families as tiny
import torch


def encoder_decoder(model, config, prompted: bool, **search) -> dict[str, np.ndarray]:
    """As tiny_families.ours, of a model of transformers with the same weights. ``search``: more of `generate`'s settings."""
    batch, start = tiny.rows(config), config.decoder_start_id
    embedded_BSD, mask_BS = _embedded(model, config, prompted)
    targets_BT = torch.tensor(batch.targets_BT, dtype=torch.long)
    shifted_BT = torch.cat([torch.full((3, 1), start), targets_BT[:, :-1]], dim=1)
    with torch.no_grad():
        out = model(inputs_embeds=embedded_BSD, attention_mask=mask_BS, decoder_input_ids=shifted_BT)
        made_BT = model.generate(
            inputs_embeds=embedded_BSD, attention_mask=mask_BS, decoder_start_token_id=start, max_new_tokens=tiny.STEPS,
            eos_token_id=list(tiny.ENDS), pad_token_id=0, **{"do_sample": False, "num_beams": 1, **search},
        )[:, 1:]  # fmt: skip
    return {"logits": tiny.real_only(out.logits.numpy()), "tokens": filled(made_BT)}


def _embedded(model, config, prompted: bool):
    batch = tiny.rows(config)
    embedded_BSD = model.get_input_embeddings()(torch.tensor(batch.inputs_BL, dtype=torch.long)).detach()
    mask_BS = torch.arange(9)[None] < torch.tensor(batch.input_length_B)[:, None]
    if prompted:
        embedded_BSD = torch.cat([torch.tensor(tiny.prompts(config)), embedded_BSD], dim=1)
        mask_BS = torch.cat([torch.ones(3, tiny.P, dtype=torch.bool), mask_BS], dim=1)
    return embedded_BSD, mask_BS.long()


def filled(tokens_BT) -> np.ndarray:
    """Tokens (B, STEPS), with zeros behind those that were made."""
    found_BT = np.zeros((len(tokens_BT), tiny.STEPS), np.int32)
    found_BT[:, : tokens_BT.shape[1]] = tokens_BT
    return found_BT
