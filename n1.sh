cd /tmp/g/N; export PATH=/tmp/venv/bin:$PATH PYTHONPATH=$PWD OMP_NUM_THREADS=1
