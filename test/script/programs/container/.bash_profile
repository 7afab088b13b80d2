# What an image adds to its PATH, for a login shell alone.
PATH=$HOME/bin:$PATH
