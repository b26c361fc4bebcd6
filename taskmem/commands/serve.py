"""taskmem serve policy | gateway | agent: what runs for as long as people use it."""

import typer

serve_app = typer.Typer(no_args_is_help=True, help="The services: the policy, the gateway before it, and the agent.")
