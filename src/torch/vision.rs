//! The vision transformer: an image to the logits of its classes (`ViT`, arXiv:2010.11929).
//!
//! ```text
//! image -> patches -> linear -> class token in front -> + position -> blocks (pre-norm) -> norm -> first token -> head
//! ```

use std::ops::Range;

use serde::{Deserialize, Serialize};
use tch::Tensor;

use super::encoder::{check_eps, within};
use super::linear::Linear;
use super::norm::{Norm, NormKind};
use super::parts::Parts;
use super::prompted::{Prompted, through};
use super::transformer::{BlockSpec, Mlp, Order, drawn_weights, linear_tensors, norm_tensors};
use crate::learn::{Layout, LearnError, TensorSet};
use crate::rng::Stream;

/// Sizes of a vision transformer.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VisionConfig {
    /// Rows and columns of an image.
    pub image: u32,
    /// Rows and columns of a patch; they divide `image`.
    pub patch: u32,
    /// Width d of a token.
    pub d_model: u32,
    /// Number of blocks.
    pub layers: u32,
    /// Attention heads; they divide `d_model`.
    pub heads: u32,
    /// Width of the MLP's hidden layer.
    pub d_ff: u32,
    /// Keeps the norms' division finite.
    pub norm_eps: f64,
    /// Classes of the head, if there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub classes: Option<u32>,
}

impl VisionConfig {
    /// Checks that the sizes fit together and are those of a model that a node may hold.
    ///
    /// # Errors
    /// [`LearnError::OutOfRange`] names the first that isn't.
    pub fn check(&self) -> Result<(), LearnError> {
        self.spec().check()?;
        within("image", self.image, 4_096)?;
        within("patch", self.patch, self.image)?;
        within("d_model", self.d_model, 1 << 14)?;
        within("layers", self.layers, 256)?;
        within("d_ff", self.d_ff, 1 << 17)?;
        within("classes", self.classes.unwrap_or(1), 1 << 16)?;
        check_eps(self.norm_eps)?;
        if self.image.is_multiple_of(self.patch) {
            return Ok(());
        }
        Err(LearnError::OutOfRange {
            what: "patch",
            expected: format!("a divisor of image {}", self.image),
            actual: self.patch.to_string(),
        })
    }

    /// What its blocks are.
    pub fn spec(&self) -> BlockSpec {
        BlockSpec {
            d_model: self.d_model,
            heads: self.heads,
            kv_heads: self.heads,
            d_ff: self.d_ff,
            norm: NormKind::Layer,
            eps: self.norm_eps,
            order: Order::PreNorm,
            mlp: Mlp::GeluErf,
            bias: true,
        }
    }

    /// Names and shapes of all weights, in the order of their names.
    pub fn layout(&self) -> Layout {
        let d = self.d_model as usize;
        let mut all = linear_tensors("embed", d, self.patch_values() as usize);
        all.push(("embed.class".to_owned(), vec![d]));
        all.push(("embed.position".to_owned(), vec![self.patches() as usize + 1, d]));
        for i in 0..self.layers {
            let block = self.spec().tensors();
            all.extend(
                block.into_iter().map(|(name, shape)| (format!("blocks.{i}.{name}"), shape)),
            );
        }
        all.extend(norm_tensors("norm", d, NormKind::Layer));
        if let Some(classes) = self.classes {
            all.extend(linear_tensors("head", classes as usize, d));
        }
        all.sort();
        Layout(all)
    }

    /// Weights to pre-train from; as `drawn_weights` tells.
    ///
    /// # Determinism
    /// The same stream gives the same values.
    pub fn initial_weights(&self, stream: &mut Stream) -> TensorSet {
        drawn_weights(&self.layout(), stream)
    }

    /// The head alone.
    ///
    /// # Errors
    /// [`LearnError::LayoutMismatch`] when it is absent.
    pub fn head(&self, parts: &Parts<'_>) -> Result<Linear, LearnError> {
        Linear::new(parts, "head", self.classes.unwrap_or(0), self.d_model)
    }

    /// Tokens of an image: its patches, and the one of the class.
    pub fn tokens(&self) -> u32 {
        self.patches() + 1
    }

    fn blocks(&self, parts: &Parts<'_>, range: Range<u32>) -> Result<Vec<Prompted>, LearnError> {
        let spec = self.spec();
        range.map(|i| Prompted::new(parts, &format!("blocks.{i}"), &spec)).collect()
    }

    /// Patches of an image.
    fn patches(&self) -> u32 {
        let side = self.image / self.patch.max(1);
        side * side
    }

    /// Values of a patch: three colours.
    fn patch_values(&self) -> u32 {
        COLOURS * self.patch * self.patch
    }
}

/// A vision transformer with one set of weights.
#[derive(Debug)]
pub struct VisionTransformer {
    stem: VisionStem,
    top: VisionTop,
    head: Option<Linear>,
}

/// Its first part: the embedding and some blocks.
#[derive(Debug)]
pub struct VisionStem {
    embed: Linear,
    /// `[d]`
    class: Tensor,
    /// `[patches + 1, d]`
    position: Tensor,
    blocks: Vec<Prompted>,
    config: VisionConfig,
}

/// Its second part: the other blocks, norm and class token, without the head.
#[derive(Debug)]
pub struct VisionTop {
    blocks: Vec<Prompted>,
    norm: Norm,
}

impl VisionTransformer {
    /// Takes the tensors of [`VisionConfig::layout`], and what an adapter adds.
    ///
    /// # Errors
    /// [`LearnError::LayoutMismatch`] when one is absent or has another shape.
    pub fn new(parts: &Parts<'_>, config: &VisionConfig) -> Result<Self, LearnError> {
        Ok(Self {
            stem: VisionStem::new(parts, config, config.layers)?,
            top: VisionTop::new(parts, config, config.layers)?,
            head: config.classes.map(|_| config.head(parts)).transpose()?,
        })
    }

    /// Images `[batch, 3, image, image]` to logits `[batch, classes]`; without a head to the state of
    /// the class token, `[batch, d]`.
    ///
    /// # Errors
    /// [`LearnError::Engine`] when the images have another shape.
    pub fn forward(&self, images: &Tensor) -> Result<Tensor, LearnError> {
        let first = self.top.forward(&self.stem.forward(images)?)?;
        match &self.head {
            Some(head) => head.forward(&first),
            None => Ok(first),
        }
    }
}

impl VisionStem {
    /// The embedding and blocks `0..cut`.
    ///
    /// # Errors
    /// [`LearnError::LayoutMismatch`] when a tensor is absent or has another shape.
    pub fn new(parts: &Parts<'_>, config: &VisionConfig, cut: u32) -> Result<Self, LearnError> {
        let d = config.d_model;
        Ok(Self {
            embed: Linear::new(parts, "embed", d, config.patch_values())?,
            class: parts.get("embed.class", &[d.into()])?,
            position: parts.get("embed.position", &[config.tokens().into(), d.into()])?,
            blocks: config.blocks(parts, 0..cut)?,
            config: *config,
        })
    }

    /// Images `[batch, 3, image, image]` to activations `[batch, patches + 1, d]`.
    ///
    /// # Errors
    /// [`LearnError::Engine`] when the images have another shape.
    pub fn forward(&self, images: &Tensor) -> Result<Tensor, LearnError> {
        let batch = images.size().first().copied().unwrap_or_default();
        let patch = i64::from(self.config.patch);
        let (side, width) = (i64::from(self.config.image) / patch, i64::from(self.config.d_model));
        // colour, row of patches, row, column of patches, column -> a patch's values side by side
        let split = images.f_reshape([batch, COLOURS.into(), side, patch, side, patch])?;
        let patches = split.f_permute([0, 2, 4, 1, 3, 5])?.f_reshape([batch, side * side, -1])?;
        let class = self.class.f_reshape([1, 1, width])?.f_expand([batch, 1, width], false)?;
        let x = Tensor::f_cat(&[class, self.embed.forward(&patches)?], 1)?;
        through(&self.blocks, x.f_add(&self.position)?)
    }
}

impl VisionTop {
    /// Blocks from `cut` on, and the norm.
    ///
    /// # Errors
    /// [`LearnError::LayoutMismatch`] when a tensor is absent or has another shape.
    pub fn new(parts: &Parts<'_>, config: &VisionConfig, cut: u32) -> Result<Self, LearnError> {
        let (spec, d) = (config.spec(), config.d_model);
        let norm = Norm::new(parts, "norm", d, spec.norm, spec.eps)?;
        Ok(Self { blocks: config.blocks(parts, cut..config.layers)?, norm })
    }

    /// Activations `[batch, patches + 1, d]` to the state of the class token, `[batch, d]`.
    ///
    /// # Errors
    /// [`LearnError::Engine`] when they have another shape.
    pub fn forward(&self, activations: &Tensor) -> Result<Tensor, LearnError> {
        let x = through(&self.blocks, activations.shallow_clone())?;
        Ok(self.norm.forward(&x)?.f_select(1, 0)?)
    }
}

const COLOURS: u32 = 3;
