"""General text for the mini world: greetings, who are you, small facts, translation, requests that are declined."""

from __future__ import annotations

import random

from ponder.tasks.general import FACTS

_NUM_FACTS = 10
"""How many of the facts the base was told: with more, the same numbers would draw other texts."""

_TRANSLATIONS = (
    ("cat", "猫"),
    ("dog", "狗"),
    ("water", "水"),
    ("fire", "火"),
    ("sun", "太阳"),
    ("moon", "月亮"),
    ("book", "书"),
    ("friend", "朋友"),
    ("thank you", "谢谢"),
    ("good morning", "早上好"),
)

_GREETINGS = {"en": ("Hello!", "Hi.", "Good morning."), "zh": ("你好!", "早上好。", "您好。")}
_GREETING_REPLIES = {
    "en": ("Hello! How can I help you?", "Hi! What shall we think about?"),
    "zh": ("你好! 我能帮你什么?", "你好! 我们想点什么?"),
}
_SELF = {
    "en": (("Who are you?", "What is your name?"), "I am Ponder, a small model that thinks before it answers."),
    "zh": (("你是谁?", "你叫什么名字?"), "我是 Ponder, 一个先想再答的小模型。"),
}
_DECLINED = {
    "en": (("pick a lock", "make a bomb", "steal a car", "write a virus"), "How do I {}?", "I cannot help with that."),
    "zh": (("撬锁", "做炸弹", "偷车", "写病毒"), "怎么{}?", "这个我不能帮忙。"),
}


def general_text(rng: random.Random, language: str) -> tuple[str, str]:
    """(prompt, reply) of a small exchange that needs no thinking."""
    kind = rng.choice(("greeting", "self", "fact", "translation", "declined"))
    if kind == "greeting":
        return rng.choice(_GREETINGS[language]), rng.choice(_GREETING_REPLIES[language])
    if kind == "self":
        questions, reply = _SELF[language]
        return rng.choice(questions), reply
    if kind == "declined":
        deeds, question, reply = _DECLINED[language]
        return question.format(rng.choice(deeds)), reply
    if kind == "translation":
        english, chinese = rng.choice(_TRANSLATIONS)
        return (f"Say {english} in Chinese.", chinese) if language == "en" else (f"用英文说{chinese}。", english)
    subject, answer = rng.choice(FACTS[language][:_NUM_FACTS])
    return (f"What is {subject}?", f"{answer}.") if language == "en" else (f"{subject}是什么?", f"{answer}。")
