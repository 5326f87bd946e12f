"""Which pictures are for what: three seeds, so that no picture serves two purposes."""

TRAINING, CALIBRATION, EVALUATION = 20_260, 20_261, 20_262
CALIBRATIONS, EVALUATIONS = 128, 1000
