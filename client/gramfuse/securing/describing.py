"""A stage of a secure sum in words: what leaves now, what in the stages behind it, and what the sum tells."""

from typing import Final

from gramfuse.naming import name_patterns
from gramfuse_shared.contract.secure import Masked, Message, SurvivorsMessage
from gramfuse_shared.contract.secure_session import SessionManifest, weighted_name
from gramfuse_shared.units import format_bytes

_WORD_BYTES: Final = 8

TELLS: Final = (
    "The server sees words that alone are random, and the sum over all members whose words are in it. The sum itself",
    "is not hidden, nor are you from all the others together. It knows names, sizes, when you answer, who drops out.",
)


def describe_stage(message: Message, session: SessionManifest) -> list[str]:
    """Tell people what a member's message is."""
    others = ", ".join(member.organization for member in session.members if member.organization != message.sender)
    match message.body:
        case Masked(words=words):
            return [
                f"  {words.name}, {format_bytes(words.bytes)}: your numbers under masks that only sums lose",
                *TELLS,
            ]
        case _ if message.stage == "keys":
            return [
                "  two public keys, signed with your identity key",
                f"and, by joining, without asking again, in the stages of this sum with {others}:",
                f"  shares of this sum's secrets, encrypted for each of them; {session.threshold} of you can use them",
                *_summed(session),
                "  which members' words are summed, and then one share of one secret of each, once",
                *TELLS,
            ]
        case _ if isinstance(message, SurvivorsMessage):
            return [f"  your signature that just these are summed: {', '.join(message.body.organizations)}"]
        case _ if message.stage == "shares":
            return ["  shares of this sum's secrets, encrypted for each other member"]
        case _:
            return ["  one share of one secret of each member: with enough of them the masks come off the sum"]


def _summed(session: SessionManifest) -> list[str]:
    size = _WORD_BYTES * sum(tensor.count for tensor in session.sums)
    if session.recipe.request is not None:
        return _summed_answers(session, size)
    prefix = weighted_name("")
    parameters = [tensor.name.removeprefix(prefix) for tensor in session.sums if tensor.name.startswith(prefix)]
    lines = [
        f"  masked words, {format_bytes(size)}, of your weights' differences to the base:",
        *(f"    {pattern}" for pattern in name_patterns(parameters)),
    ]
    if session.taps:
        lines.append("  and of these Gram matrices with their products with the differences:")
        lines += [f"    {pattern}" for pattern in name_patterns([tap.name for tap in session.taps])]
    if session.elements:
        lines.append(f"  and of the Fisher information of {len(session.elements)} of these, with its products")
    return lines


def _summed_answers(session: SessionManifest, size: int) -> list[str]:
    """Say what a sum of announced answers tells: of a label that one member counted alone it is that member's."""
    words, model = f"  masked words, {format_bytes(size)}, of", session.recipe.base_model
    if session.recipe.merge_method == "calibration":
        return [
            f"{words} the histograms that you announced to {session.recipe.request}:",
            f"  how {model} scores your labelled texts. Counts of a label that you alone counted are yours in the sum.",
        ]
    return [
        f"{words} what you announced to {session.recipe.request}: the Gram matrix of what",
        f"  the head of {model} reads of your texts, and its product with your own model's logits",
    ]
