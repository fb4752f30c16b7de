"""The encoder-decoder attention of a translated sentence: which source words each target word looked at."""

from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.patches import Rectangle

from benchmarks.figures.canvas import COLOURS, Drawing, new_figure, show_map
from dalle.checkpoint.translator import find_translator, load_translator
from dalle.defaults import DEFAULT_TRANSLATOR
from dalle.translate.translator import Translator

__all__ = ["SENTENCE", "draw_translation"]

SENTENCE = "dessine un chat noir dans le style fluent flat"
"""French has the adjective behind its noun, and names of styles behind the word for style: English has both in front,
so the lines of the map cross."""


def draw_translation(translator: Translator | None = None, sentence: str = SENTENCE) -> Drawing:
    """Draw the encoder-decoder attention of each layer, the mean of its heads, word by word; a frame marks the source
    word that a target word looked at most.

    translator: the one that the library has, if none is given. The network translates the sentence alone, without the
    lexicon, so that it has every word.
    """
    translator = translator or load_translator(find_translator(DEFAULT_TRANSLATOR))
    (translation,) = translator.translate([sentence])
    found = translator.align(translation)
    maps = found.weights.mean(1)
    height, width = len(found.target), len(found.source)
    figure = new_figure(1.0 + len(maps) * (1.4 + 0.26 * width), 1.9 + 0.3 * height)
    engine = figure.get_layout_engine()
    assert isinstance(engine, ConstrainedLayoutEngine)
    engine.set(w_pad=0.15)  # rotated words reach out of their axes
    for number, (axes, weights) in enumerate(zip(figure.subplots(1, len(maps), squeeze=False)[0], maps, strict=True)):
        show_map(axes, weights, None, 1.0)
        axes.set_xticks(range(width), found.source, rotation=60, ha="right", rotation_mode="anchor", fontsize=9)
        axes.set_yticks(range(height), found.target if number == 0 else [""] * height, fontsize=9)
        axes.tick_params(length=0)
        axes.set_title(f"layer {number + 1}", fontsize=10)
        for row, column in enumerate(weights.argmax(1).tolist()):
            axes.add_patch(Rectangle((column - 0.5, row - 0.5), 1, 1, fill=False, ec=COLOURS[1], lw=1.5))
    figure.suptitle(f'"{translation.source}", read while "{translation.text}" is written', fontsize=11)
    most = [found.source[column] for column in maps[-1].argmax(1).tolist()]
    return Drawing(
        figure=figure,
        numbers=f"{translation.source} -> {translation.text}, probability of a token {translation.confidence:.2f}; "
        "most looked at in the last layer: "
        + ", ".join(f"{target}: {source}" for target, source in zip(found.target, most, strict=True))
        + "; weight on the end, by layer: "
        + ", ".join(f"{share:.2f}" for share in maps[:, :, -1].mean(1).tolist()),
    )
