"""Extra training on top of the host's: stages that follow its loop, and losses inside its discriminator step."""
