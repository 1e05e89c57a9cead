"""The processes of a job: how they start, meet, agree, stop and notice that one has died."""
