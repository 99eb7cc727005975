"""The invalid vectors of each numbered rule of the format.

A vector may stand for several rules; a rule without one says why.
"""

from __future__ import annotations

from typing import Final

RULES: Final[dict[str, str]] = {
    "S1": "stream-announced stream-leftover stream-short stream-short-signs "
    "stream-whole-size stream-whole-short stream-gap-escape",
    "S2": "stream-padding-mask stream-padding-gaps stream-padding-signs stream-padding-classes "
    "stream-padding-rows stream-padding-exponents stream-padding-low",
    "S3": "stream-row-unchanged",
    "S4": "stream-too-many",
    "S5": "stream-popcount",
    "S6": "stream-gap-overrun stream-gap-end stream-escape-overrun stream-escape-wrap",
    "S7": "stream-exponent stream-exponent-large stream-exponent-wrap",
    "S8": "stream-step stream-step-low",
    "J1": "listing-no-json listing-not-utf8 listing-mark listing-not-a-number listing-comma "
    "file-text-no-json file-text-not-utf8 listing-text-no-json listing-verbatim-infinity "
    "manifest-empty manifest-not-a-number header-not-utf8 header-trailing",
    "J2": "listing-key-twice listing-key-escaped file-text-twice verbatim-twice "
    "listing-verbatim-twice header-duplicate-key header-duplicate-entry "
    "manifest-duplicate",
    "J3": "listing-surrogate listing-surrogate-key file-text-surrogate "
    "listing-verbatim-surrogate manifest-surrogate manifest-surrogate-key",
    "J4": "listing-integer manifest-integer",
    "J5": "listing-deep listing-deeper manifest-deep header-deep file-text-deep "
    "listing-verbatim-deep listing-text-deep",
    "Z1": "stream-no-frame stream-skippable-first index-no-frame index-frame-short",
    "Z2": "stream-window stream-no-size stream-checksum stream-dictionary "
    "stream-dictionary-zero stream-reserved-bit stream-unused-bit index-window "
    "index-no-size index-frame-checksum",
    "Z3": "stream-block-reserved stream-block-large index-block-reserved",
    "Z4": "stream-second-frame stream-skippable stream-trailing stream-cut stream-no-last "
    "index-second-frame",
    "Z5": "stream-announced-lie stream-block-compressed index-announced-lie",
    "D1": "missing-file missing-listing missing-both",
    "D2": "",
    "D3": "listing-no-map listing-map-list listing-array",
    "D4": "listing-other listing-more listing-less listing-one listing-none listing-index "
    "listing-path",
    "D5": "",
    "D6": "missing-shard order-missing-header",
    "C1": "header-none header-length-beyond",
    "C2": "limit-header",
    "C3": "header-unaligned",
    "C4": "header-padding header-length-short",
    "C5": "header-leading-space header-white-space header-more-metadata header-dtype "
    "header-entry-name header-no-index header-escape header-gap header-longer-text "
    "header-no-data header-no-metadata header-metadata-number header-array "
    "header-shape-text header-shape-two header-shape-none header-shape-true "
    "header-shape-negative header-index-negative header-shape-list shards-swapped",
    "C6": "header-file-longer header-file-shorter",
    "M1": "manifest-float manifest-white-space manifest-order manifest-array manifest-boolean "
    "manifest-negative manifest-large manifest-null manifest-upper-hex "
    "manifest-code-units manifest-slash manifest-tab",
    "M2": "manifest-no-format manifest-odd-format manifest-format-long manifest-format-suffix "
    "manifest-format-number",
    "M3": "version-major version-before version-candidate "
    "version-candidate-next version-major-digits version-major-rc",
    "M4": "manifest-no-features manifest-features-order manifest-features-type "
    "manifest-features-item manifest-features-name manifest-features-twice",
    "M5": "feature-unknown",
    "M6": "manifest-no-shard manifest-other-shard manifest-shard-type",
    "M7": "manifest-no-base manifest-no-tuned manifest-digest manifest-base-type "
    "manifest-base-digest manifest-digest-long",
    "M8": "manifest-no-totals manifest-less-totals manifest-totals-type manifest-totals-text",
    "M9": "base-repo base-repo-scheme base-repo-parts base-revision base-revision-up",
    "M10": "base-delta-type base-delta-empty base-delta-number base-delta-absolute "
    "base-delta-drive base-delta-scheme base-delta-backslash base-delta-up-later "
    "base-delta-up-only base-delta-up-far base-delta-deep base-delta-branch "
    "base-delta-no-commit base-delta-no-repo base-delta-host base-delta-repo-up",
    "M11": "manifest-cast manifest-cast-type",
    "M12": "features-unlike",
    "I1": "index-entry-short",
    "I2": "checksum-index checksum-manifest checksum-first-shard",
    "I3": "limit-index limit-index-frame",
    "I4": "index-column-wide index-column-width index-column-empty index-column-loose "
    "index-column-nine",
    "I5": "index-cut index-longer block-cut",
    "I6": "name-prefix name-prefix-first name-prefix-long name-prefix-same",
    "I7": "name-long name-long-shared name-long-bytes name-empty name-not-utf8 "
    "name-tensor-not-utf8 name-surrogate name-prefix-huge",
    "I8": "name-control name-reversed name-c1 name-delete name-isolate name-metadata "
    "source-name removed-name",
    "I9": "names-descending name-twice removed-descending removed-twice source-twice",
    "I10": "source-unused source-only-unused source-own-name",
    "I11": "removed-tensor removed-source",
    "I12": "kind-unknown dtype-unknown width-unknown width-none map-unknown widening-unknown "
    "chunk-coding",
    "I13": "bytes-not-whole",
    "I14": "words-not-whole",
    "I15": "width-of-same map-of-same",
    "I16": "tail-of-whole tail-of-same moved-of-same moved-of-whole steps-of-same "
    "steps-of-same-only steps-of-whole "
    "widening-of-whole widening-of-same",
    "I17": "widening-dtype widening-unsigned widening-width widening-map",
    "I18": "tail-long",
    "I19": "origin-of-whole origin-unknown alias-of-nothing alias-before alias-unknown "
    "source-not-listed",
    "I20": "alias-of-alias alias-of-itself alias-shape alias-dtype",
    "I21": "steps-wrong steps-large steps-wrap",
    "I22": "moved-more moved-shared",
    "I23": "chunk-of-same chunk-tensor-wrap chunk-tensor-beyond",
    "I24": "chunk-beyond chunk-in-tail chunk-delta-in-whole chunk-whole-beyond chunk-skip-wrap",
    "I25": "whole-uncovered tail-uncovered whole-gap",
    "I26": "chunk-empty chunk-stored",
    "I27": "chunk-shard data-longer data-shorter",
    "I28": "chunk-odd-start chunk-odd-length chunk-odd-three",
    "I29": "chunk-rows chunk-one-dimension chunk-rows-part",
    "I30": "chunk-no-contexts chunk-bounds chunk-overlap-bounds",
    "I31": "chunk-bound-large chunk-bound-last",
    "I32": "chunk-no-changes",
    "I33": "totals-tensors totals-elements totals-changed totals-chunks totals-bytes",
    "I34": "tuned-digest",
    "I35": "feature-no-block",
    "I36": "block-order block-twice block-name block-name-empty block-name-long",
    "B1": "checksum-chunk checksum-chunk-check",
    "B2": "base-missing base-dtype base-short",
    "B3": "base-check base-words",
    "B4": "base-digest base-same",
    "B5": "result-delta result-whole result-widened",
    "B6": "result-digest",
    "B7": "base-state base-unused",
    "B8": "base-less removed-more",
    "B9": "base-more removed-less",
    "F1": "file-path file-suffix file-dot file-space file-dash file-long file-not-ascii",
    "F2": "file-device file-device-number",
    "F3": "file-case file-order",
    "F4": "file-of-tensor",
    "F5": "file-layout file-layout-text listing-layout",
    "F6": "file-text-number file-text-more file-text-space file-text-space-after "
    "file-text-array verbatim-metadata verbatim-metadata-list",
    "F7": "file-verbatim-other file-verbatim-empty verbatim-dtype verbatim-shape verbatim-name "
    "verbatim-missing verbatim-more verbatim-space verbatim-array verbatim-dtype-unknown "
    "verbatim-tensor-list verbatim-dtype-list verbatim-shape-text",
    "F8": "verbatim-gap verbatim-overlap verbatim-shift verbatim-overlap-gap "
    "verbatim-length verbatim-offsets verbatim-offset-text",
    "F9": "listing-text",
    "F10": "listing-text-float listing-text-print listing-text-null",
    "F11": "listing-verbatim-path listing-verbatim-more listing-verbatim-other "
    "listing-verbatim-less listing-verbatim-empty listing-verbatim-no-map "
    "listing-verbatim-array",
    "L1": "limit-tensors limit-sources limit-removed",
    "L2": "limit-chunks",
    "L3": "limit-files",
    "L4": "",
    "L5": "limit-rank",
    "L6": "limit-dimension",
    "L7": "limit-words limit-words-wrap",
    "L8": "limit-tuned-bytes",
    "L9": "limit-chunk-words",
    "L10": "limit-changed",
    "L11": "limit-stored",
    "L12": "limit-contexts",
    "L13": "limit-check limit-result limit-base",
    "L14": "limit-blocks",
    "L15": "large",
}

TOO_LARGE: Final = {"D2": "listing-long", "D5": "listing-many", "L4": "names-long"}
"""Rules whose vectors are megabytes long: ``large.py`` makes them where they are needed."""
