from studiogan_guidance.cli import main

if __name__ == "__main__":
    main()
