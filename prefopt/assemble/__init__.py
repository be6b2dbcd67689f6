"""From a recipe to the pieces of a run; a function takes the block of the recipe that it reads.

In the order in which ``train`` asks for them:

    loss         the ``loss`` block -> a loss with every setting closed
    references   what the policy is compared with, a file for each kind
    fit          the loss, refused where another block does not go with it
    model        the ``model`` block -> tokenizer, policy, the engine they run on
    optim        the ``optim`` block -> settings of an optimizer
    data         sources -> tokenized groups, some of them held out
    plan         groups -> optimizer steps
    scoring      a reference over all groups; rows under a model that is not trained
    skeleton     models whose weights take no memory, for
    memory       what a run will hold on one rank

Errors begin with the setting they are about; ``Recipe.located`` adds where it was written.
"""
