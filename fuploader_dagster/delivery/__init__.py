"""From a sealed slot to a verified object: pack, upload, recover, scrub, replay."""
