"""Residuals → scores: what is made of a model's error, as four choices, each a row of a table.

    residual      the error of each cell (`residuals.RESIDUALS`)
    weighting     what the error of each band is divided by (`pooling.WEIGHTINGS`)
    pooling       how the errors of the frames become one number (`pooling.POOLINGS`)
    calibration   what the number is compared with (`calibration.CALIBRATIONS`)

`score.Score` is one choice of each, `score.Detector` a model with a score that is fitted to normal clips, and
`ensemble` adds the scores of several detectors. All are functions on tensors, and have a gradient up to the pooling.
"""
