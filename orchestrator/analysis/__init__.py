"""What representations and predictions are like, in numpy: arrays in, numbers out; nothing here reads a store or draws.

    diversity   effective number of distinct vectors, cosine similarity, noise of the same size as a found difference
    variance    shares of variance by class, image and independent search: a nested analysis of variance
    spectra     power of maps by spatial frequency
    collision   collision entropy within and between classes
    calibration confidence against accuracy
    agreement   equal predictions and errors of models, alignment of their representations
    probes      accuracy of a linear classifier on representations

Shapes: N images; K independent searches of an image; D values of a representation; C classes.
"""
