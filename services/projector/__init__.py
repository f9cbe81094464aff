"""The projector: folds the events of all runs into SQL rows that can be dropped and made again."""
