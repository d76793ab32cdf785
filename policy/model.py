"""The video-action model: one U-Net predicts the future of every camera, an action head reads its features
and denoises the actions.

Shapes: B clips; V views; K frames per view; F = pad + V*K frames on the time axis; H W pixels; S stored and C
latent channels; h w latent rows, columns; T steps of a chunk; A action dimensions; P proprioceptive values; D
size of the adaptor's vector.
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor

from policy.action_head import ActionHead
from policy.adaptor import Adaptor
from policy.batch import BLOCK, Batch, Counts, Losses, blocks
from policy.config import LossWeights, Objective, PolicyConfig, SamplerConfig
from policy.edm import draw_sigma, euler_step, guided, karras_sigmas, unit_noise
from policy.interface import Contract
from policy.latent_codec import latent_codec
from policy.learner import Learner
from policy.losses import masked_mean, per_clip_error
from policy.text_encoder import sentence_encoder
from policy.video_unet import VideoModel


class FeatureCache:
    """Cache of feature maps by clip seed, up to `budget_bytes`; entries are never evicted, and clips that do
    not fit are recomputed.
    """

    def __init__(self, budget_bytes: int) -> None:
        self._left = budget_bytes
        self._kept: dict[int, list[Tensor]] = {}

    def __contains__(self, seed: int) -> bool:
        return seed in self._kept

    def __getitem__(self, seed: int) -> list[Tensor]:
        return self._kept[seed]

    def offer(self, seed: int, features: list[Tensor]) -> None:
        """Cache the maps of one clip, each (F, c, h, w), if they fit."""
        size = sum(feature.nbytes for feature in features)
        if seed not in self._kept and size <= self._left:
            self._left -= size
            self._kept[seed] = [feature.clone() for feature in features]


class VideoActionModel(Learner):
    """Video model, adaptor and action head, for the conventions of one contract.

    `weights`: folder or hub id of the frozen parts that the configuration needs: the autoencoder and the text
    tower. `text`: further sources of the text tower, for weights without one. `download`: whether it may come
    from the hub, if none of these has one.
    """

    def __init__(
        self,
        config: PolicyConfig,
        contract: Contract,
        weights: str | Path | None = None,
        known_sentences: Mapping[str, Tensor] | None = None,
        text: Sequence[str | Path] = (),
        download: bool = True,
    ) -> None:
        super().__init__()
        assert config.video is not None
        assert config.adaptor is not None
        self.config, self.contract = config, contract
        self.objective: Objective = "joint"
        self.loss_weights = LossWeights()
        """Weights of the two losses of the joint objectives."""
        self.num_views = len(contract.cameras)
        self.num_frames = config.video.pad_frames + self.num_views * config.clip.frames_per_view
        rows, columns = (side // config.video.patch for side in contract.image_size)
        self.latent_shape = (config.video.latent_channels, rows, columns)
        self.codec = latent_codec(config.video, weights)
        beside = (*([weights] if weights else []), *text)
        known = dict(known_sentences or {})
        self.sentences = sentence_encoder(config.video, None, known, beside=beside, download=download)
        self.video = VideoModel(config.video, contract.image_size)
        embed_dim = 4 * config.video.block_out_channels[0]
        self.adaptor = Adaptor(
            config.adaptor,
            self.video.feature_shapes(),
            self.num_views,
            config.clip.frames_per_view,
            embed_dim,
        )
        self.head = ActionHead(config.action, contract, self.adaptor.out_dim, embed_dim)
        self.feature_cache = FeatureCache(0)

    def learn(self, objective: Objective) -> None:
        """Set the objective of the next steps, and freeze the parts that it does not train."""
        self.objective = objective
        self.video.requires_grad_(objective != "action")
        for part in (self.adaptor, self.head):
            part.requires_grad_(objective != "video")

    def checkpoint_gradients(self) -> None:
        """Recompute the video model's activations in the backward pass instead of storing them."""
        self.video.unet.enable_gradient_checkpointing()

    # -- inputs of the video model ---------------------------------------------------------------------------

    def _on_time_axis(self, per_view_BVKChw: Tensor) -> Tensor:
        """Return the views end to end, (B, F, C, h, w), after `pad_frames` copies of the first view's present
        frame (arXiv 2508.00795).
        """
        pad = per_view_BVKChw[:, 0, :1].expand(
            -1, self.num_frames - per_view_BVKChw.shape[1] * per_view_BVKChw.shape[2], -1, -1, -1
        )
        return torch.cat([pad, per_view_BVKChw.flatten(1, 2)], dim=1)

    def _condition(self, present: Tensor) -> Tensor:
        """Return the condition of every frame: the present picture of its camera, from pictures (B, V, H, W,
        3) or stored latents (B, V, S, h, w).
        """
        shown = self.codec.condition(present) if present.is_floating_point() else self.codec.present(present)
        return self._on_time_axis(
            shown[:, :, None].expand(-1, -1, self.config.clip.frames_per_view, -1, -1, -1)
        )

    def views(self, video_BFChw: Tensor) -> Tensor:
        """Split the time axis into views, (B, V, K, C, h, w), without the pad frames."""
        views: Tensor = video_BFChw[:, -self.num_views * self.config.clip.frames_per_view :].unflatten(
            1, (self.num_views, -1)
        )
        return views

    def _text(self, instructions: Sequence[str], device: torch.device) -> Tensor:
        return self.sentences.embed(list(instructions)).to(device)

    def _dropped(self, num: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draw two masks per clip, 1 where the sentence and where the present pictures are kept.

        Three events of equal probability drop the sentence, the pictures, or both. Drawn per clip, so that
        the network is trained on the fully unconditional case, which guidance needs (Brooks et al. 2023,
        arXiv 2211.09800, 3.2.1).
        """
        share, drawn = self.config.diffusion.condition_dropout, torch.rand(num, generator=generator)
        sentence, picture = drawn < 2 * share, (drawn >= share) & (drawn < 3 * share)
        return 1 - sentence.float(), 1 - picture.float()

    # -- training --------------------------------------------------------------------------------------------

    def forward(self, batch: Batch, generator: torch.Generator, counts: Counts) -> Losses:
        """Return the losses of the objective: both streams noised, the video error on every clip, the action
        error on clips with actions.

        The generator (on the CPU) draws every random number, so a step is a function of its seed.
        """
        diffusion, zero = self.config.diffusion, counts.frames.new_zeros(())
        if self.objective == "action" and diffusion.features_at == "start":
            features, sigma = self._features_at_start(batch)
            video_loss = zero
        else:
            with torch.set_grad_enabled(self.objective != "action"):
                features, sigma, video_loss = self._imagine(batch, generator, counts)
        if self.objective == "video":
            return Losses(video_loss, video_loss.detach(), zero)
        flows = self.objective == "joint"
        embedding = self._embedding(sigma, flows)
        seen = self.adaptor(features if flows else [feature.detach() for feature in features], embedding)
        cond = self.head.condition(seen, batch.proprio)
        shared = sigma if diffusion.sigmas == "shared" else None
        action_loss = self.head.loss(
            batch.actions,
            batch.action_mask,
            cond,
            lambda s: self._embedding(s, flows),
            diffusion,
            generator,
            shared,
            counts.actions,
        )
        weights = self.loss_weights
        total = (
            action_loss
            if self.objective == "action"
            else weights.video * video_loss + weights.action * action_loss
        )
        return Losses(total, video_loss.detach(), action_loss.detach())

    def _embedding(self, sigma_B: Tensor, flows: bool = False) -> Tensor:
        embedding = self.video.time_embedding(sigma_B)
        return embedding if flows else embedding.detach()

    def _imagine(
        self, batch: Batch, generator: torch.Generator, counts: Counts
    ) -> tuple[list[Tensor], Tensor, Tensor]:
        """Denoise the video at drawn noise levels; return the feature maps, the noise levels (B,) and the
        video loss.
        """
        diffusion, device = self.config.diffusion, batch.frames.device
        encoded = (
            batch.frames
            if batch.frames.is_floating_point()
            else self.codec.encode(batch.frames, conditions=False)
        )
        video = self._on_time_axis(self.codec.target(encoded, generator))
        num = len(video)
        decoupled = diffusion.sigmas == "decoupled"
        mean = (
            diffusion.video_log_sigma_mean
            if decoupled and diffusion.video_log_sigma_mean is not None
            else diffusion.log_sigma_mean
        )
        std = (
            diffusion.video_log_sigma_std
            if decoupled and diffusion.video_log_sigma_std is not None
            else diffusion.log_sigma_std
        )
        sigma = draw_sigma(num, mean, std, generator).to(device)
        noise = torch.randn(video.shape, generator=generator).to(device)
        sentence, picture = (kept.to(device) for kept in self._dropped(num, generator))
        clean, features = self.video(
            video + sigma[:, None, None, None, None] * noise,
            sigma,
            self._condition(batch.frames[:, :, 0]) * picture[:, None, None, None, None],
            self._text(batch.instructions, device) * sentence[:, None, None],
        )
        if self.objective == "action":
            return features, sigma, counts.frames.new_zeros(())
        pad = self.num_frames - batch.frame_mask.shape[1] * self.num_views
        mask = torch.cat(
            [batch.frame_mask[:, :1].expand(-1, pad), batch.frame_mask.repeat(1, self.num_views)], dim=1
        )
        num_masked = pad * counts.clips + self.num_views * counts.frames
        return features, sigma, masked_mean(per_clip_error(clean, video, sigma), mask, num_masked)

    @torch.no_grad()
    def _features_at_start(self, batch: Batch) -> tuple[list[Tensor], Tensor]:
        """Return the feature maps and noise levels of the first sampling pass: from pure noise at the highest
        level, a function of the clip alone.
        """
        device = batch.frames.device
        sigma = torch.full((BLOCK,), self.config.sampler.video_sigmas[1], device=device)
        missing = [i for i, seed in enumerate(batch.seeds) if seed not in self.feature_cache]
        fresh: dict[int, list[Tensor]] = {}
        for filled, asked in blocks(missing):
            noise = unit_noise([batch.seeds[i] for i in filled], (self.num_frames, *self.latent_shape)).to(
                device
            )
            condition = self._condition(batch.frames[filled, :, 0])
            text = self._text([batch.instructions[i] for i in filled], device)
            _, maps = self.video(noise * sigma[:, None, None, None, None], sigma, condition, text)
            for place, i in enumerate(filled[:asked]):
                fresh[i] = [feature[place] for feature in maps]
                self.feature_cache.offer(batch.seeds[i], fresh[i])
        clips = [fresh[i] if i in fresh else self.feature_cache[seed] for i, seed in enumerate(batch.seeds)]
        return [torch.stack(maps) for maps in zip(*clips, strict=True)], sigma[:1].expand(len(clips))

    # -- sampling --------------------------------------------------------------------------------------------

    @torch.no_grad()
    def sample(
        self,
        present_BVHW3: Tensor,
        proprio_BP: Tensor,
        instructions: list[str],
        noise_seeds: Sequence[tuple[int, int]],
        sampler: SamplerConfig,
    ) -> tuple[Tensor, Tensor]:
        """Sample (B, F, C, h, w) latents and (B, T, A) normalised actions.

        noise_seeds: (video, actions) seeds of each row. If there are as many video passes as action steps,
        both streams are denoised together (arXiv 2508.00795); otherwise the video is denoised first, and the
        features of its last pass serve every action step.
        """
        device = present_BVHW3.device
        num = len(present_BVHW3)
        condition, text = self._condition(present_BVHW3), self._text(instructions, device)
        guidance = sampler.guidance
        if guidance != 1:
            condition, text, proprio_BP = (
                torch.cat(pair)
                for pair in ((condition, condition * 0), (text, text * 0), (proprio_BP, proprio_BP))
            )
        video_sigmas = karras_sigmas(sampler.video_passes, *sampler.video_sigmas, sampler.rho).to(device)
        action_sigmas = karras_sigmas(sampler.action_steps, *sampler.action_sigmas, sampler.rho).to(device)
        video_seeds, action_seeds = zip(*noise_seeds, strict=True)
        video = unit_noise(video_seeds, (self.num_frames, *self.latent_shape)).to(device) * video_sigmas[0]
        chunk = (self.config.clip.horizon, len(self.contract.action))
        actions = unit_noise(action_seeds, chunk).to(device) * action_sigmas[0]
        clean = video

        def look(video: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
            sigma_B = sigma.expand(len(condition))
            clean, features = self.video(
                torch.cat([video] * (len(condition) // num)), sigma_B, condition, text
            )
            seen = self.head.condition(self.adaptor(features, self._embedding(sigma_B)), proprio_BP)
            return clean if len(clean) == num else guided(clean, guidance), seen

        together = sampler.video_passes == sampler.action_steps
        action_levels = list(pairwise(action_sigmas))
        cond = torch.empty(0)
        for step, (sigma, sigma_next) in enumerate(pairwise(video_sigmas)):
            clean, cond = look(video, sigma)
            video = euler_step(video, clean, sigma, sigma_next)
            if together:
                actions = self.head.step(actions, *action_levels[step], cond, self._embedding, guidance)
        for level in [] if together else action_levels:
            actions = self.head.step(actions, *level, cond, self._embedding, guidance)
        return clean, actions
