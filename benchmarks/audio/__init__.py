"""What the speech suites share: noisy clips, the NSNet2 front end, quality measures."""
