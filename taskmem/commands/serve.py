"""taskmem serve all | policy | gateway | agent: what runs for as long as people use it."""

import typer

from taskmem.commands.serve_agent import agent
from taskmem.commands.serve_all import everything
from taskmem.commands.serve_gateway import gateway
from taskmem.commands.serve_policy import policy

serve_app = typer.Typer(no_args_is_help=True, help="The services: the policy, the gateway before it, and the agent.")
serve_app.command("all", context_settings={"allow_extra_args": True})(everything)
serve_app.command("policy", context_settings={"allow_extra_args": True})(policy)
serve_app.command()(gateway)
serve_app.command()(agent)
