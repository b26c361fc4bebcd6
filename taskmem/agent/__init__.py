"""The agent: streams in, memories written, questions answered from memory alone, feedback kept."""

from taskmem.agent.answering import Answerer, visible
from taskmem.agent.local import LocalAgent
from taskmem.agent.protocol import Agent, Answer, Served

__all__ = ["Agent", "Answer", "Answerer", "LocalAgent", "Served", "visible"]
