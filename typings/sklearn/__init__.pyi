from sklearn import base as base
from sklearn import metrics as metrics
