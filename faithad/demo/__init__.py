"""The demo mill: seeded recordings of a planer, with annotated disturbances."""
