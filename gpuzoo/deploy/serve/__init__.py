"""A small HTTP service over an exported model, without TensorFlow or Keras."""
