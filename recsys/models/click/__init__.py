"""Models of clicks: will this user take this candidate?"""
