class Order < ActiveRecord::Base
  # Appends an event in the current transaction. Outside of one it would commit alone.
  def self.append(topic, type, payload)
    raise "append needs a transaction" unless connection.transaction_open?

    sql = sanitize_sql(["select outbox.append(?, ?, ?)", topic, type, payload.to_json])
    connection.select_value(sql)
  end

  def self.pay(id)
    transaction do
      order = lock.find(id) # this lock orders the topic
      order.update!(status: "paid")
      append("order:#{id}", "ORDER_PAID", { id: order.id, status: order.status })
    end
  end
end
