from studiogan_guidance.cli import main

main()
