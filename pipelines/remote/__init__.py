"""A Kubeflow Pipelines installation: connecting to it, uploading the pipeline, runs, and schedules.

Requests go through the generated client, `kfp_server_api`. `kfp.Client` keeps its namespace and cookies in a file of the
user's home, prints links as it goes, and cannot make a recurring run that follows the latest version of a pipeline.
"""
